# The policies of deploy/iam, from the same files.

module "policies" {
  source     = "../policies"
  partition  = data.aws_partition.here.partition
  region     = local.region
  account_id = local.account
  prefix     = var.prefix
  # Tenants move between any two cells.
  pair = { source = "*", target = "*" }
}

resource "aws_iam_policy" "role" {
  for_each = module.policies.documents

  name   = "${var.prefix}cell-directory-${each.key}"
  policy = each.value
  tags   = local.tags
}

data "aws_iam_policy_document" "service_account" {
  count = var.kubernetes == null ? 0 : 1

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = ["${local.aws}:iam::${local.account}:oidc-provider/${var.kubernetes.oidc_provider}"]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.kubernetes.oidc_provider}:aud"
      values   = ["sts.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.kubernetes.oidc_provider}:sub"
      values   = ["system:serviceaccount:${var.kubernetes.service_account}"]
    }
  }
}

resource "aws_iam_role" "control_plane" {
  count = var.kubernetes == null ? 0 : 1

  name               = "${var.prefix}cell-directory"
  assume_role_policy = data.aws_iam_policy_document.service_account[0].json
  tags               = local.tags
}

resource "aws_iam_role_policy_attachment" "control_plane" {
  count = var.kubernetes == null ? 0 : 1

  role       = aws_iam_role.control_plane[0].name
  policy_arn = aws_iam_policy.role["control-plane"].arn
}
