variables {
  cell_id     = "cell-a"
  environment = "production"
  region      = "eu-west-1"
  account_id  = "123456789012"
}

run "cell_with_capitals" {
  command = plan
  variables {
    cell_id = "Cell-a"
  }
  expect_failures = [var.cell_id]
}

run "cell_that_begins_with_a_dash" {
  command = plan
  variables {
    cell_id = "-a"
  }
  expect_failures = [var.cell_id]
}

run "cell_without_characters" {
  command = plan
  variables {
    cell_id = ""
  }
  expect_failures = [var.cell_id]
}

run "cell_with_an_underscore" {
  command = plan
  variables {
    cell_id = "cell_a"
  }
  expect_failures = [var.cell_id]
}

run "cell_that_is_too_long" {
  command = plan
  variables {
    cell_id = join("", [for n in range(64) : "c"])
  }
  expect_failures = [var.cell_id]
}

run "cell_with_a_line_break" {
  command = plan
  variables {
    cell_id = "cell-a\n"
  }
  expect_failures = [var.cell_id]
}

run "prefix_with_a_space" {
  command = plan
  variables {
    prefix = "prod "
  }
  expect_failures = [var.prefix]
}

run "prefix_with_a_slash" {
  command = plan
  variables {
    prefix = "prod/"
  }
  expect_failures = [var.prefix]
}

run "prefix_that_is_too_long" {
  command = plan
  variables {
    prefix = join("", [for n in range(65) : "p"])
  }
  expect_failures = [var.prefix]
}

run "environment_without_characters" {
  command = plan
  variables {
    environment = ""
  }
  expect_failures = [var.environment]
}

run "table_with_a_dash" {
  command = plan
  variables {
    tables = ["Customer-Data"]
  }
  expect_failures = [var.tables]
}

run "table_of_the_control_plane" {
  command = plan
  variables {
    tables = ["CellControl"]
  }
  expect_failures = [var.tables]
}

run "account_that_is_none" {
  command = plan
  variables {
    account_id = "12345"
  }
  expect_failures = [var.account_id]
}
