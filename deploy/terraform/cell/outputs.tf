output "tables" {
  value = { for table, made in aws_dynamodb_table.cell : table => { name = made.name, arn = made.arn, stream_arn = made.stream_arn } }
}

output "key_arn" {
  value = aws_kms_key.cell.arn
}

output "application_policy_arns" {
  value = { for table, policy in aws_iam_policy.application : table => policy.arn }
}
