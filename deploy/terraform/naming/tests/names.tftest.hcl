variables {
  prefix      = "prod-"
  cell_id     = "cell-a"
  environment = "production"
  region      = "eu-west-1"
  account_id  = "123456789012"
}

run "a_cell" {
  command = plan

  assert {
    condition     = output.cell_tables == tomap({ CustomerData = "prod-CustomerData-cell-a" })
    error_message = "the table's name is prefix, name, dash, cell"
  }
  assert {
    condition     = output.cell_table_arns["CustomerData"] == "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CustomerData-cell-a"
    error_message = "the table's ARN"
  }
  assert {
    condition     = output.cell_index_arns["CustomerData"] == "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CustomerData-cell-a/index/CellIdIndex"
    error_message = "the index's ARN"
  }
  assert {
    condition     = output.tags == { cell = "cell-a", environment = "production", managed-by = "cell-directory" }
    error_message = "the tags"
  }
}

run "the_control_plane" {
  command = plan

  variables {
    cell_id = null
  }

  assert {
    condition     = output.mappings_table == "prod-CellMappings" && output.control_table == "prod-CellControl"
    error_message = "the control tables are named as celld names them"
  }
  assert {
    condition     = output.mappings_index_arn == "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CellMappings/index/CellIdIndex"
    error_message = "the index's ARN"
  }
  assert {
    condition     = output.control_arn == "arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CellControl"
    error_message = "the control table's ARN"
  }
  assert {
    condition     = length(output.cell_tables) == 0
    error_message = "without a cell there are no tables of one"
  }
  assert {
    condition     = output.tags["cell"] == "control-plane"
    error_message = "costs of the control plane have a tag of their own"
  }
  assert {
    condition     = output.cell_tables_pattern == ["arn:aws:dynamodb:eu-west-1:123456789012:table/prod-CustomerData-*"]
    error_message = "the pattern covers the tables of every cell"
  }
}

run "without_a_prefix_and_elsewhere" {
  command = plan

  variables {
    prefix    = ""
    partition = "aws-cn"
    region    = "cn-north-1"
    tables    = ["CustomerData", "Orders"]
  }

  assert {
    condition     = output.cell_tables == tomap({ CustomerData = "CustomerData-cell-a", Orders = "Orders-cell-a" })
    error_message = "a cell may have several tables"
  }
  assert {
    condition     = output.mappings_arn == "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/CellMappings"
    error_message = "the partition is a part of the ARN"
  }
}

run "the_longest_names_fit" {
  command = plan

  variables {
    prefix  = join("", [for n in range(64) : "p"])
    cell_id = join("", [for n in range(63) : "c"])
    tables  = [join("", [for n in range(64) : "T"])]
  }

  assert {
    condition     = alltrue([for name in values(output.cell_tables) : length(name) <= 255])
    error_message = "DynamoDB allows 255 characters"
  }
}
