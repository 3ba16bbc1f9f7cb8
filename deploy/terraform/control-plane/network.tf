# Traffic to DynamoDB stays in the network, and through this door only principals of this account reach only tables of this prefix.
data "aws_iam_policy_document" "endpoint" {
  statement {
    sid     = "OwnPrincipalsOwnTables"
    actions = ["dynamodb:*"]
    resources = concat(
      [module.naming.mappings_arn, "${module.naming.mappings_arn}/index/*", module.naming.control_arn],
      module.naming.cell_tables_pattern,
    )
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:PrincipalAccount"
      values   = [local.account]
    }
  }
  # Has no resource that could be named; removing a cell's tables looks for its backup.
  statement {
    sid       = "OwnPrincipalsFindBackups"
    actions   = ["dynamodb:ListBackups"]
    resources = ["*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:PrincipalAccount"
      values   = [local.account]
    }
  }
}

resource "aws_vpc_endpoint" "dynamodb" {
  count = var.network == null ? 0 : 1

  vpc_endpoint_type = "Gateway"
  service_name      = "com.amazonaws.${local.region}.dynamodb"
  vpc_id            = var.network.vpc_id
  route_table_ids   = var.network.route_table_ids
  policy            = data.aws_iam_policy_document.endpoint.json
  tags              = local.tags
}
