//! The bundled price table, and tables that must be refused.

use cells_cost::*;

const FILE: &str = include_str!("../../../../prices/aws-dynamodb-2026-10-04.toml");

#[test]
fn the_bundled_table_is_good_and_says_where_it_is_from() {
    let prices = PriceTable::bundled().unwrap();
    assert_eq!(prices.as_of(), "2026-10-04");
    assert_eq!(
        prices.regions().collect::<Vec<_>>(),
        ["eu-central-1", "eu-west-1", "us-east-1", "us-west-2"]
    );
    assert!(prices.region("eu-west-1").unwrap().source().contains("price list"));
    assert_eq!(prices.free_tier().storage_gb, 25);
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    // What to replace (at its first place), by what, and what the error must say.
    let table = [
        ("as_of = \"2026-10-04\"", "as_of = \"2026-13-04\"", "as_of: is \"2026-13-04\""),
        (
            "as_of = \"2026-10-04\"",
            "as_of = \"2026-01-04\"",
            "regions.eu-central-1.as_of: is 2026-09-11, after",
        ),
        ("as_of = \"2026-09-11\"", "as_of = \"11.9.2026\"", "regions.us-east-1.as_of"),
        ("as_of = \"2026-10-04\"", "as_of = \"2026-10-04T00:00\"", "as_of: is"),
        ("currency = \"USD\"", "currency = \"EUR\"", "currency: is \"EUR\""),
        ("currency = \"USD\"", "", "missing field `currency`"),
        (
            "pitr_gb_month = \"0.20\"",
            "pitr_gb_month = \"0\"",
            "regions.us-east-1.pitr_gb_month: is $0.00",
        ),
        (
            "pitr_gb_month = \"0.20\"",
            "pitr_gb_month = \"-0.2\"",
            "\"-0.2\" is not an amount of dollars",
        ),
        ("pitr_gb_month = \"0.20\"", "pitr_gb_month = 0.20", "invalid type: floating point"),
        (
            "pitr_gb_month = \"0.20\"",
            "pitr_gb_month = \"11\"",
            "regions.us-east-1.pitr_gb_month: is $11.00",
        ),
        ("pitr_gb_month", "pitr_gb_mouth", "unknown field `pitr_gb_mouth`"),
        (
            "storage_gb_month = \"0.10\"",
            "storage_gb_month = \"0.25\"",
            "regions.us-east-1.standard_ia.storage_gb_month: is $0.25, which must be less",
        ),
        (
            "read_request = \"0.000000155\"",
            "read_request = \"0.000000125\"",
            "regions.us-east-1.standard_ia.read_request: is $0.000000125, which must be more",
        ),
        (
            "write_request = \"0.00000078\"",
            "write_request = \"0.0000006\"",
            "regions.us-east-1.standard_ia.write_request",
        ),
        (
            "write_capacity_hour = \"0.00081\"",
            "write_capacity_hour = \"0.00065\"",
            "regions.us-east-1.standard_ia.write_capacity_hour",
        ),
        (
            "write_hour = \"0.0128\"",
            "write_hour = \"0.0651\"",
            "regions.us-east-1.reserved.one_year.write_hour: is $0.0651",
        ),
        (
            "read_upfront = \"36\"",
            "read_upfront = \"0\"",
            "regions.us-east-1.reserved.three_years.read_upfront",
        ),
        ("source = \"req", "source = \" \" # \"req", "regions.us-east-1.source: is empty"),
        ("[free_tier]", "[[free_tier]]", "free_tier"),
    ];
    for (from, to, error) in table {
        assert!(FILE.contains(from), "{from}");
        let text = PriceTable::parse(&FILE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(text.contains(error), "{from} → {to}: {text}");
    }
    let head = FILE.split("[regions.us-east-1]").next().unwrap();
    assert!(PriceTable::parse(head).unwrap_err().to_string().contains("regions"));
    assert!(matches!(
        PriceTable::parse(&"#".repeat(MAX_FILE_BYTES + 1)),
        Err(PriceError::TooLarge(_))
    ));
    assert!(PriceTable::parse("\u{0}").is_err());
}
