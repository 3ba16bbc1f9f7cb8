# The alarms of one table.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80, < 7.0"
    }
  }
}

variable "table" {
  type = string
}

variable "index" {
  type        = string
  default     = null
  description = "The table's index, if it has one."
}

variable "read_units" {
  type        = number
  default     = null
  description = "Consumed read units a second above which an alarm is raised; null for none."
}

variable "write_units" {
  type    = number
  default = null
}

variable "operations" {
  type        = list(string)
  default     = ["GetItem", "Query", "PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems"]
  description = "Operations whose system errors count."
  validation {
    # An alarm takes ten metrics, and the sum is one of them.
    condition     = 1 <= length(var.operations) && length(var.operations) <= 9
    error_message = "operations must be 1 to 9"
  }
}

variable "actions" {
  type    = list(string)
  default = []
}

variable "tags" {
  type    = map(string)
  default = {}
}

locals {
  throttles = merge(
    {
      read-throttles  = { metric = "ReadThrottleEvents", dimensions = { TableName = var.table } }
      write-throttles = { metric = "WriteThrottleEvents", dimensions = { TableName = var.table } }
    },
    var.index == null ? {} : {
      index-write-throttles = {
        metric     = "WriteThrottleEvents"
        dimensions = { TableName = var.table, GlobalSecondaryIndexName = var.index }
      }
    },
  )
  consumed = merge(
    var.read_units == null ? {} : { consumed-read = { metric = "ConsumedReadCapacityUnits", limit = var.read_units } },
    var.write_units == null ? {} : { consumed-write = { metric = "ConsumedWriteCapacityUnits", limit = var.write_units } },
  )
}

resource "aws_cloudwatch_metric_alarm" "throttles" {
  for_each = local.throttles

  alarm_name          = "${var.table}-${each.key}"
  namespace           = "AWS/DynamoDB"
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  # DynamoDB reports a throttle when there is one, so nothing reported is nothing throttled.
  treat_missing_data = "notBreaching"
  alarm_actions      = var.actions
  ok_actions         = var.actions
  tags               = var.tags
}

# SystemErrors exists for each operation only: an alarm on the table alone would never see a value.
resource "aws_cloudwatch_metric_alarm" "system_errors" {
  alarm_name          = "${var.table}-system-errors"
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.actions
  ok_actions          = var.actions
  tags                = var.tags

  metric_query {
    id          = "all"
    label       = "SystemErrors"
    expression  = "SUM([${join(",", [for operation in var.operations : "FILL(${lower(operation)},0)"])}])"
    return_data = true
  }
  dynamic "metric_query" {
    for_each = var.operations
    content {
      id = lower(metric_query.value)
      metric {
        namespace   = "AWS/DynamoDB"
        metric_name = "SystemErrors"
        dimensions  = { TableName = var.table, Operation = metric_query.value }
        period      = 60
        stat        = "Sum"
      }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "consumed" {
  for_each = local.consumed

  alarm_name          = "${var.table}-${each.key}"
  evaluation_periods  = 15
  datapoints_to_alarm = 10
  threshold           = each.value.limit
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.actions
  ok_actions          = var.actions
  tags                = var.tags

  # The metric is a sum over its period; the threshold is a rate.
  metric_query {
    id          = "rate"
    label       = "Units a second"
    expression  = "consumed/PERIOD(consumed)"
    return_data = true
  }
  metric_query {
    id = "consumed"
    metric {
      namespace   = "AWS/DynamoDB"
      metric_name = each.value.metric
      dimensions  = { TableName = var.table }
      period      = 60
      stat        = "Sum"
    }
  }
}
