# A daily backup of some tables, into a vault of their own.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80, < 7.0"
    }
  }
}

variable "name" {
  type = string
}

variable "table_arns" {
  type = list(string)
}

variable "key_arn" {
  type = string
}

variable "schedule" {
  type = string
}

variable "retention_days" {
  type = number
  validation {
    condition     = var.retention_days >= 1
    error_message = "retention_days must be at least 1"
  }
}

variable "tags" {
  type    = map(string)
  default = {}
}

data "aws_caller_identity" "here" {}
data "aws_partition" "here" {}

resource "aws_backup_vault" "tables" {
  name        = var.name
  kms_key_arn = var.key_arn
  tags        = var.tags
}

resource "aws_backup_plan" "tables" {
  name = var.name
  tags = var.tags

  rule {
    rule_name         = "daily"
    target_vault_name = aws_backup_vault.tables.name
    schedule          = var.schedule
    start_window      = 60
    completion_window = 720
    lifecycle {
      delete_after = var.retention_days
    }
  }
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["backup.amazonaws.com"]
    }
    # Nobody else's backup plan can have the service act on this account.
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.here.account_id]
    }
  }
}

resource "aws_iam_role" "backup" {
  name_prefix        = "cell-directory-backup-"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "backup" {
  role       = aws_iam_role.backup.name
  policy_arn = "arn:${data.aws_partition.here.partition}:iam::aws:policy/service-role/AWSBackupServiceRolePolicyForBackup"
}

resource "aws_backup_selection" "tables" {
  name         = "tables"
  plan_id      = aws_backup_plan.tables.id
  iam_role_arn = aws_iam_role.backup.arn
  resources    = var.table_arns
}
