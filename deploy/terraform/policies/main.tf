# The policies of deploy/iam with their placeholders filled in. Needs no provider, so that it can be tested anywhere.

terraform {
  required_version = ">= 1.6"
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
}

variable "prefix" {
  type    = string
  default = ""
}

variable "table" {
  type        = string
  default     = "CustomerData"
  description = "Name of the cells' table, without prefix and cell; a policy is for one of them."
}

variable "cell_id" {
  type        = string
  default     = null
  description = "The cell of the application's policy; null: there is none."
}

variable "pair" {
  type        = object({ source = string, target = string })
  default     = null
  description = "The two cells of the migrator's policy, * being any; null: there is none."
}

locals {
  placeholders = merge(
    {
      "<PARTITION>" = var.partition
      "<REGION>"    = var.region
      "<ACCOUNT>"   = var.account_id
      "<PREFIX>"    = var.prefix
    },
    var.cell_id == null ? {} : { "<CELL>" = var.cell_id },
    var.pair == null ? {} : { "<SOURCE_CELL>" = try(var.pair.source, ""), "<TARGET_CELL>" = try(var.pair.target, "") },
  )
  roles = concat(
    ["resolver", "control-plane", "cell-removal", "cell-recovery", "cell-data"],
    var.cell_id == null ? [] : ["application"],
    var.pair == null ? [] : ["migrator"],
  )
  documents = {
    # Split into placeholders and what is between them, which passes as it is.
    for role in local.roles : role => replace(
      join("", [
        for part in regexall("<[A-Z_]+>|[^<]+|<", file("${path.module}/../../iam/${role}.json")) : lookup(local.placeholders, part, part)
      ]),
      "/${var.prefix}CustomerData-", "/${var.prefix}${var.table}-",
    )
  }
}

output "documents" {
  description = "Policies by role: resolver, control-plane, cell-removal, cell-recovery, cell-data, and application and migrator where they were asked for."
  value       = local.documents

  precondition {
    condition     = alltrue([for document in values(local.documents) : !can(regex("<[A-Z_]+>", document))])
    error_message = "a policy has a placeholder that is not known here"
  }
}
