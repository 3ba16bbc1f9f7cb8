//! What is kept of a comparison.

use cells_guard::KeyType;
use cells_verify::{Findings, MAX_EXAMPLES, MismatchKind};
use futures::executor::block_on;

use crate::world::*;

#[test]
fn findings_grow_step_by_step_over_restarts() {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::Number), &["{partition_key}"])]);
    let at = ("T".to_owned(), "tenant".to_owned());
    let put = |source: bool, n: i64, value: u8| {
        let (key, cell) = (Key::Number(n), if source { "cell-a" } else { "cell-b" });
        let item = Some(item("tenant", &key, cell, value, source));
        world.lock().unwrap().change(Change { source, at: at.clone(), key, item });
    };
    for n in 0..60 {
        put(true, n, 1);
        put(false, n, u8::from(n % 2 == 0));
    }
    let verifier = verifier(&world, &of, "tenant").with_page_items(7);
    let (all, _) = compare(&verifier);
    let mut kept = serde_json::to_string(&Findings::<i64>::default()).unwrap();
    let mut from = Some(verifier.start());
    while let Some(cursor) = from {
        let mut findings: Findings<i64> = serde_json::from_str(&kept).unwrap();
        let step = block_on(verifier.compare_page(&cursor, NOW)).unwrap();
        findings.count(&step);
        let suspects: Vec<_> = step.suspects.into_iter().map(|one| one.at).collect();
        for (number, one) in
            block_on(verifier.recheck(&suspects, NOW)).unwrap().differing.iter().enumerate()
        {
            findings.add(one, number > 0);
        }
        kept = serde_json::to_string(&findings).unwrap();
        from = step.next;
    }
    let mut findings: Findings<i64> = serde_json::from_str(&kept).unwrap();
    assert_eq!((findings.source_items, findings.target_items), (60, 60));
    assert_eq!((findings.mismatches, findings.examples.len()), (30, MAX_EXAMPLES));
    assert_eq!(
        (findings.source_digest, findings.target_digest),
        (all.source.digest, all.target.digest)
    );
    assert!(!findings.settled() && findings.repaired > 0);
    findings.repaired = 30;
    assert!(findings.settled());
    // Another comparison, as under the fence: what was mended before stays told.
    let told = (findings.mismatches, findings.repaired, findings.examples.clone());
    findings.begin_again();
    assert_eq!((findings.mismatches, findings.repaired, findings.examples.clone()), told);
    let empty = Findings { mismatches: 0, repaired: 0, examples: vec![], ..findings };
    assert_eq!(empty, Findings::default());
    assert!(!kept.contains("tenant"), "no key is kept: {kept}");
}

/// As the record of a migration has them.
#[test]
fn its_form_is_that_of_the_record() {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::String), &["{partition_key}"])]);
    let key = Key::Text("k".to_owned());
    let put = Some(item("a", &key, "cell-a", 1, false));
    let at = ("T".to_owned(), "a".to_owned());
    world.lock().unwrap().change(Change { source: true, at, key, item: put });
    let verifier = verifier(&world, &of, "a");
    let (all, _) = compare(&verifier);
    let touched: Vec<_> = all.suspects.iter().map(|one| one.at.clone()).collect();
    let differing = block_on(verifier.recheck(&touched, NOW)).unwrap().differing;
    let mut findings = Findings::<i64>::default();
    findings.count(&all);
    findings.add(&differing[0], true);
    findings.ended = Some(1_800_000_000_000);
    // printf '\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\1k' | sha256sum
    let key_hash = "83d12f28d81736013f54d534a68a1fc6657e9ba11fa61c7a2da0940ce02680ed";
    let expected = serde_json::json!({
        "source_items": 1,
        "target_items": 0,
        "source_expired": 0,
        "target_expired": 0,
        "source_misnamed": 0,
        "source_digest": all.source.digest.to_string(),
        "target_digest": "0".repeat(64),
        "mismatches": 1,
        "repaired": 1,
        "examples": [{"table": "T", "key_hash": key_hash, "kind": "MISSING", "repaired": true}],
        "ended": 1_800_000_000_000_i64,
    });
    assert_eq!(serde_json::to_value(&findings).unwrap(), expected);
    let former = r#"{"source_items": 3, "source_digest": "", "mismatches": 0, "ended": null}"#;
    let former: Findings<i64> = serde_json::from_str(former).unwrap();
    assert_eq!(former, Findings { source_items: 3, ..Findings::default() });
    for (kind, name) in [
        (MismatchKind::Missing, "MISSING"),
        (MismatchKind::Extra, "EXTRA"),
        (MismatchKind::Different, "DIFFERENT"),
    ] {
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
    }
}
