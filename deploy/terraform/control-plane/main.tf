# The control plane: its two tables as celld makes them, key, network, audit trail, alarms, backups and IAM. As
# deploy/cloudformation/control-plane.yaml. Run `celld tables create` after it all the same, for that begins the journal.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80, < 7.0"
    }
  }
}

data "aws_caller_identity" "here" {}
data "aws_partition" "here" {}
data "aws_region" "here" {}

module "naming" {
  source      = "../naming"
  prefix      = var.prefix
  environment = var.environment
  tables      = var.cell_tables
  partition   = data.aws_partition.here.partition
  region      = data.aws_region.here.name
  account_id  = data.aws_caller_identity.here.account_id
}

locals {
  account = data.aws_caller_identity.here.account_id
  region  = data.aws_region.here.name
  aws     = "arn:${data.aws_partition.here.partition}"
  tags    = module.naming.tags
  trail   = "${var.prefix}cell-directory"
  actions = var.alarm_topic_arn == null ? [] : [var.alarm_topic_arn]
}

data "aws_iam_policy_document" "key" {
  statement {
    sid       = "AccountAdministersByIam"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["${local.aws}:iam::${local.account}:root"]
    }
  }
  # The key can be used through DynamoDB and AWS Backup only: who may read a table is decided by the table's policies, and nobody
  # needs a permission on the key besides.
  statement {
    sid       = "UseThroughTheServices"
    actions   = ["kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["*"]
    }
    condition {
      test     = "StringEquals"
      variable = "kms:CallerAccount"
      values   = [local.account]
    }
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = [for service in ["dynamodb", "backup"] : "${service}.${local.region}.amazonaws.com"]
    }
  }
  statement {
    sid       = "EncryptTheTrail"
    actions   = ["kms:DescribeKey", "kms:GenerateDataKey*"]
    resources = ["*"]
    principals {
      type        = "Service"
      identifiers = ["cloudtrail.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceArn"
      values   = ["${local.aws}:cloudtrail:${local.region}:${local.account}:trail/${local.trail}"]
    }
  }
}

resource "aws_kms_key" "control_plane" {
  description         = "Tables, backups and audit trail of the Cell Directory"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.key.json
  tags                = local.tags

  # Without its key a table, its backups and the trail are unreadable.
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_dynamodb_table" "mappings" {
  name                        = module.naming.mappings_table
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "PartitionKey"
  deletion_protection_enabled = var.deletion_protection
  tags                        = local.tags

  attribute {
    name = "PartitionKey"
    type = "S"
  }
  attribute {
    name = "CellId"
    type = "S"
  }
  global_secondary_index {
    name            = "CellIdIndex"
    hash_key        = "CellId"
    projection_type = "KEYS_ONLY"
  }
  ttl {
    attribute_name = "TTL"
    enabled        = true
  }
  point_in_time_recovery {
    enabled = true
  }
  server_side_encryption {
    enabled     = true
    kms_key_arn = aws_kms_key.control_plane.arn
  }

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_dynamodb_table" "control" {
  name                        = module.naming.control_table
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "PK"
  range_key                   = "SK"
  deletion_protection_enabled = var.deletion_protection
  tags                        = local.tags

  attribute {
    name = "PK"
    type = "S"
  }
  attribute {
    name = "SK"
    type = "S"
  }
  ttl {
    attribute_name = "TTL"
    enabled        = true
  }
  point_in_time_recovery {
    enabled = true
  }
  server_side_encryption {
    enabled     = true
    kms_key_arn = aws_kms_key.control_plane.arn
  }

  lifecycle {
    prevent_destroy = true
  }
}

module "mappings_alarms" {
  source     = "../alarms"
  table      = aws_dynamodb_table.mappings.name
  index      = "CellIdIndex"
  operations = ["GetItem", "BatchGetItem", "Scan", "TransactWriteItems"]
  actions    = local.actions
  tags       = local.tags
}

module "control_alarms" {
  source     = "../alarms"
  table      = aws_dynamodb_table.control.name
  operations = ["GetItem", "Query", "UpdateItem", "TransactWriteItems"]
  actions    = local.actions
  tags       = local.tags
}

module "backup" {
  source = "../backup"

  name           = "${var.prefix}CellDirectory"
  table_arns     = [aws_dynamodb_table.mappings.arn, aws_dynamodb_table.control.arn]
  key_arn        = aws_kms_key.control_plane.arn
  schedule       = var.backup_schedule
  retention_days = var.backup_retention_days
  tags           = local.tags
}
