output "mappings_table_arn" {
  value = aws_dynamodb_table.mappings.arn
}

output "control_table_arn" {
  value = aws_dynamodb_table.control.arn
}

output "key_arn" {
  value = aws_kms_key.control_plane.arn
}

output "policy_arns" {
  value = { for role, policy in aws_iam_policy.role : role => policy.arn }
}

output "control_plane_role_arn" {
  value = one(aws_iam_role.control_plane[*].arn)
}
