variables {
  region     = "eu-west-1"
  account_id = "123456789012"
  prefix     = "prod-"
}

run "of_the_control_plane" {
  command = plan

  assert {
    condition     = keys(output.documents) == ["cell-data", "cell-recovery", "cell-removal", "control-plane", "resolver"]
    error_message = "without cells there are the policies of the control plane"
  }
  assert {
    condition     = jsondecode(output.documents["resolver"]).Statement[0].Resource == "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CellMappings"
    error_message = "every placeholder is filled in"
  }
  assert {
    condition     = contains(jsondecode(output.documents["control-plane"]).Statement[1].Resource, "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CustomerData-*")
    error_message = "the control plane makes tables of cells"
  }
  assert {
    condition     = jsondecode(output.documents["control-plane"]).Statement[2].Condition["ForAllValues:StringLike"]["dynamodb:LeadingKeys"] == "?guard#*"
    error_message = "the control plane writes guards, and no other items of cells"
  }
}

run "of_a_cell" {
  command = plan

  variables {
    cell_id = "cell-a"
    table   = "Orders"
  }

  assert {
    condition     = jsondecode(output.documents["application"]).Statement[0].Resource == "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-Orders-cell-a"
    error_message = "the application has its cell's table"
  }
  assert {
    condition     = jsondecode(output.documents["application"]).Statement[0].Condition["ForAllValues:StringEquals"]["dynamodb:LeadingKeys"] == "CUSTOMER#$${aws:PrincipalTag/tenant}"
    error_message = "IAM's own variables are left as they are"
  }
  assert {
    condition = jsondecode(output.documents["application"]).Statement[2].Condition["ForAllValues:StringLike"]["dynamodb:LeadingKeys"] == [
      "CUSTOMER#$${aws:PrincipalTag/tenant}",
      "?log#*",
    ]
    error_message = "the application adds to logs"
  }
  assert {
    condition = [for statement in jsondecode(output.documents["application"]).Statement : statement.Resource if try(statement.Sid, "") == "NeverWriteGuards"] == [
      "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-Orders-*",
    ]
    error_message = "the application writes no guard of any cell"
  }
}

run "of_a_pair" {
  command = plan

  variables {
    pair = { source = "cell-a", target = "cell-b" }
  }

  assert {
    condition = jsondecode(output.documents["migrator"]).Statement[0].Resource == [
      "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CustomerData-cell-a",
      "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CustomerData-cell-b",
    ]
    error_message = "the migrator has two cells"
  }
  assert {
    condition     = jsondecode(output.documents["migrator"]).Statement[1].Resource == jsondecode(output.documents["migrator"]).Statement[0].Resource
    error_message = "logs are removed in the same two cells"
  }
}

run "of_all_pairs" {
  command = plan

  variables {
    pair = { source = "*", target = "*" }
  }

  assert {
    condition     = one(distinct(jsondecode(output.documents["migrator"]).Statement[0].Resource)) == "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CustomerData-*"
    error_message = "celld moves tenants between any two cells"
  }
}
