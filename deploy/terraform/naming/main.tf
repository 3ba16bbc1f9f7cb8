# Names, ARNs and tags of the Cell Directory's tables. Needs no provider, so that it can be tested anywhere; the other modules and
# the applications' own stacks take every name from here.

terraform {
  required_version = ">= 1.6"
}

variable "prefix" {
  type        = string
  default     = ""
  description = "Put before the name of every table; the same as celld's --table-prefix."
  validation {
    condition     = can(regex("^[A-Za-z0-9_.-]{0,64}$", var.prefix))
    error_message = "prefix must be at most 64 characters of A-Z a-z 0-9 _ . -"
  }
}

variable "cell_id" {
  type        = string
  default     = null
  description = "The cell's id, as it is registered with the directory; null for the control plane."
  validation {
    condition     = var.cell_id == null || can(regex("^[a-z0-9][a-z0-9-]{0,62}$", var.cell_id))
    error_message = "cell_id must be 1 to 63 characters of a-z 0-9 -, the first not -"
  }
}

variable "environment" {
  type        = string
  description = "Value of the tag environment, such as production."
  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9 _.:/=+@-]{0,62}$", var.environment))
    error_message = "environment must be 1 to 63 characters that a tag's value may have, the first a letter or digit"
  }
}

variable "tables" {
  type        = set(string)
  default     = ["CustomerData"]
  description = "Names of the cell's tables, without prefix and cell."
  validation {
    # Prefix, name, dash and cell id stay within the 255 characters that DynamoDB allows.
    condition     = alltrue([for table in var.tables : can(regex("^[A-Za-z][A-Za-z0-9]{2,63}$", table))])
    error_message = "a table's name must be 3 to 64 letters and digits, the first a letter"
  }
  validation {
    condition     = length(setintersection(var.tables, ["CellMappings", "CellControl"])) == 0
    error_message = "CellMappings and CellControl are the control plane's"
  }
}

variable "partition" {
  type    = string
  default = "aws"
}

variable "region" {
  type = string
}

variable "account_id" {
  type = string
  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id must be 12 digits"
  }
}

locals {
  arn      = "arn:${var.partition}:dynamodb:${var.region}:${var.account_id}:table"
  mappings = "${var.prefix}CellMappings"
  control  = "${var.prefix}CellControl"
  tables   = var.cell_id == null ? {} : { for table in var.tables : table => "${var.prefix}${table}-${var.cell_id}" }
}

output "mappings_table" {
  value = local.mappings
}

output "control_table" {
  value = local.control
}

output "mappings_arn" {
  value = "${local.arn}/${local.mappings}"
}

output "mappings_index_arn" {
  value = "${local.arn}/${local.mappings}/index/CellIdIndex"
}

output "control_arn" {
  value = "${local.arn}/${local.control}"
}

output "cell_tables" {
  description = "The cell's tables by their names without prefix and cell."
  value       = local.tables
}

output "cell_table_arns" {
  value = { for table, name in local.tables : table => "${local.arn}/${name}" }
}

output "cell_index_arns" {
  value = { for table, name in local.tables : table => "${local.arn}/${name}/index/CellIdIndex" }
}

output "cell_tables_pattern" {
  description = "Matches the tables of every cell, and neither control table."
  value       = [for table in var.tables : "${local.arn}/${var.prefix}${table}-*"]
}

output "tags" {
  value = {
    cell        = var.cell_id == null ? "control-plane" : var.cell_id
    environment = var.environment
    managed-by  = "cell-directory"
  }
}
