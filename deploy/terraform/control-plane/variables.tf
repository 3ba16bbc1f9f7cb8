variable "prefix" {
  type        = string
  default     = ""
  description = "Put before the name of every table; checked by the module naming."
}

variable "environment" {
  type = string
}

variable "cell_tables" {
  type        = set(string)
  default     = ["CustomerData"]
  description = "Names of the cells' tables, without prefix and cell. Other names need deploy/iam/control-plane.json changed, too."
}

variable "deletion_protection" {
  type    = bool
  default = true
}

variable "network" {
  type        = object({ vpc_id = string, route_table_ids = list(string) })
  default     = null
  description = "VPC in which celld runs and the route tables of its subnets; null: no endpoint for DynamoDB is made."
}

variable "kubernetes" {
  type        = object({ oidc_provider = string, service_account = string })
  default     = null
  description = "The cluster's OIDC issuer without https://, and the service account as namespace:name; null: no role is made."
}

variable "audit_reads" {
  type        = bool
  default     = false
  description = "Whether the trail records reads too; each replica polls the journal four times a second, and each record costs."
}

variable "audit_retention_days" {
  type    = number
  default = 400
}

variable "alarm_topic_arn" {
  type    = string
  default = null
}

variable "backup_schedule" {
  type    = string
  default = "cron(0 2 * * ? *)"
}

variable "backup_retention_days" {
  type    = number
  default = 35
}
