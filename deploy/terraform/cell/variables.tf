variable "cell_id" {
  type        = string
  description = "The cell's id, as it is registered with the directory; checked by the module naming."
  nullable    = false
}

variable "prefix" {
  type    = string
  default = ""
}

variable "environment" {
  type = string
}

variable "tables" {
  type    = set(string)
  default = ["CustomerData"]
}

variable "billing_mode" {
  type    = string
  default = "PAY_PER_REQUEST"
  validation {
    condition     = contains(["PAY_PER_REQUEST", "PROVISIONED"], var.billing_mode)
    error_message = "billing_mode must be PAY_PER_REQUEST or PROVISIONED"
  }
}

variable "read_capacity" {
  type        = object({ min = number, max = number })
  default     = { min = 5, max = 4000 }
  description = "Bounds of scaling, of each table and of its index; only with PROVISIONED."
  validation {
    condition     = 1 <= var.read_capacity.min && var.read_capacity.min <= var.read_capacity.max
    error_message = "read_capacity must have 1 <= min <= max"
  }
}

variable "write_capacity" {
  type        = object({ min = number, max = number })
  default     = { min = 5, max = 4000 }
  description = "Bounds of scaling, of each table and of its index; only with PROVISIONED."
  validation {
    condition     = 1 <= var.write_capacity.min && var.write_capacity.min <= var.write_capacity.max
    error_message = "write_capacity must have 1 <= min <= max"
  }
}

variable "target_utilization" {
  type    = number
  default = 70
  validation {
    condition     = 20 <= var.target_utilization && var.target_utilization <= 90
    error_message = "target_utilization must be 20 to 90 percent"
  }
}

variable "deletion_protection" {
  type    = bool
  default = true
}

variable "read_units_alarm" {
  type        = number
  default     = 3200
  description = "Consumed read units a second above which an alarm is raised."
}

variable "write_units_alarm" {
  type        = number
  default     = 3200
  description = "Consumed write units a second above which an alarm is raised."
}

variable "alarm_topic_arn" {
  type    = string
  default = null
}

variable "backup_schedule" {
  type    = string
  default = "cron(0 3 * * ? *)"
}

variable "backup_retention_days" {
  type    = number
  default = 35
}

variable "budget" {
  type        = object({ monthly_usd = number, email = string })
  default     = null
  description = "Cost a month of everything tagged with this cell, and who is told when it is nearly used."
}
