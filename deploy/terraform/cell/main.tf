# One cell: its tables with their key, scaling, alarms, backups and budget. As deploy/cloudformation/cell.yaml, for any number of tables.

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
  cell_id     = var.cell_id
  environment = var.environment
  tables      = var.tables
  partition   = data.aws_partition.here.partition
  region      = data.aws_region.here.name
  account_id  = data.aws_caller_identity.here.account_id
}

locals {
  tables      = module.naming.cell_tables
  tags        = module.naming.tags
  provisioned = var.billing_mode == "PROVISIONED"
  actions     = var.alarm_topic_arn == null ? [] : [var.alarm_topic_arn]
}

data "aws_iam_policy_document" "key" {
  statement {
    sid       = "AccountAdministersByIam"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.here.partition}:iam::${data.aws_caller_identity.here.account_id}:root"]
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
      values   = [data.aws_caller_identity.here.account_id]
    }
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = [for service in ["dynamodb", "backup"] : "${service}.${data.aws_region.here.name}.amazonaws.com"]
    }
  }
}

resource "aws_kms_key" "cell" {
  description         = "Tables and backups of cell ${var.cell_id}"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.key.json
  tags                = local.tags

  # Without its key a table and its backups are unreadable.
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_dynamodb_table" "cell" {
  for_each = local.tables

  name                        = each.value
  billing_mode                = var.billing_mode
  read_capacity               = local.provisioned ? var.read_capacity.min : null
  write_capacity              = local.provisioned ? var.write_capacity.min : null
  hash_key                    = "PK"
  range_key                   = "SK"
  stream_enabled              = true
  stream_view_type            = "NEW_AND_OLD_IMAGES"
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
  attribute {
    name = "CellId"
    type = "S"
  }
  # Keys alone: the index finds items that are in the wrong cell, it does not serve them.
  global_secondary_index {
    name            = "CellIdIndex"
    hash_key        = "CellId"
    range_key       = "PK"
    projection_type = "KEYS_ONLY"
    read_capacity   = local.provisioned ? var.read_capacity.min : null
    write_capacity  = local.provisioned ? var.write_capacity.min : null
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
    kms_key_arn = aws_kms_key.cell.arn
  }

  lifecycle {
    prevent_destroy = true
    # Scaling moves these; a plan must not move them back.
    ignore_changes = [read_capacity, write_capacity, global_secondary_index]
  }
}

locals {
  # Every table and its index, for reads and for writes. An index that cannot take its writes throttles the table's.
  scaled = !local.provisioned ? {} : merge([
    for table, name in local.tables : {
      "${table}-read"        = { resource = "table/${name}", of = "table", kind = "Read", limits = var.read_capacity }
      "${table}-write"       = { resource = "table/${name}", of = "table", kind = "Write", limits = var.write_capacity }
      "${table}-index-read"  = { resource = "table/${name}/index/CellIdIndex", of = "index", kind = "Read", limits = var.read_capacity }
      "${table}-index-write" = { resource = "table/${name}/index/CellIdIndex", of = "index", kind = "Write", limits = var.write_capacity }
    }
  ]...)
}

resource "aws_appautoscaling_target" "capacity" {
  for_each = local.scaled

  service_namespace  = "dynamodb"
  resource_id        = each.value.resource
  scalable_dimension = "dynamodb:${each.value.of}:${each.value.kind}CapacityUnits"
  min_capacity       = each.value.limits.min
  max_capacity       = each.value.limits.max
  depends_on         = [aws_dynamodb_table.cell]
}

resource "aws_appautoscaling_policy" "capacity" {
  for_each = local.scaled

  name               = "${var.cell_id}-${each.key}"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = "dynamodb"
  resource_id        = aws_appautoscaling_target.capacity[each.key].resource_id
  scalable_dimension = aws_appautoscaling_target.capacity[each.key].scalable_dimension

  target_tracking_scaling_policy_configuration {
    target_value = var.target_utilization
    predefined_metric_specification {
      predefined_metric_type = "DynamoDB${each.value.kind}CapacityUtilization"
    }
  }
}

module "alarms" {
  source   = "../alarms"
  for_each = aws_dynamodb_table.cell

  table       = each.value.name
  index       = "CellIdIndex"
  read_units  = var.read_units_alarm
  write_units = var.write_units_alarm
  actions     = local.actions
  tags        = local.tags
}

module "backup" {
  source = "../backup"

  name           = "${var.prefix}${var.cell_id}"
  table_arns     = [for table in aws_dynamodb_table.cell : table.arn]
  key_arn        = aws_kms_key.cell.arn
  schedule       = var.backup_schedule
  retention_days = var.backup_retention_days
  tags           = local.tags
}

resource "aws_budgets_budget" "cell" {
  count = var.budget == null ? 0 : 1

  name         = "${var.prefix}${var.cell_id}"
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(var.budget.monthly_usd)
  limit_unit   = "USD"

  # The tag has to be activated for cost allocation in the payer's account, once.
  cost_filter {
    name   = "TagKeyValue"
    values = [join("$", ["user:cell", var.cell_id])]
  }
  notification {
    notification_type          = "ACTUAL"
    comparison_operator        = "GREATER_THAN"
    threshold                  = 80
    threshold_type             = "PERCENTAGE"
    subscriber_email_addresses = [var.budget.email]
  }
  notification {
    notification_type          = "FORECASTED"
    comparison_operator        = "GREATER_THAN"
    threshold                  = 100
    threshold_type             = "PERCENTAGE"
    subscriber_email_addresses = [var.budget.email]
  }
}

module "policies" {
  source     = "../policies"
  for_each   = local.tables
  partition  = data.aws_partition.here.partition
  region     = data.aws_region.here.name
  account_id = data.aws_caller_identity.here.account_id
  prefix     = var.prefix
  table      = each.key
  cell_id    = var.cell_id
}

# For the roles of the applications that run in this cell.
resource "aws_iam_policy" "application" {
  for_each = local.tables

  name   = "${each.value}-application"
  policy = module.policies[each.key].documents["application"]
  tags   = local.tags
}
