//! Which writes may be done twice, held against an engine that does them twice.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::Item;
use cells_guard::writer::{Action, Expression, Write};

use crate::world::{create, engine, key, text};

/// Updates, and whether they may be repeated. `N`, `L`, `S`, `T` are a number, a list, a set and a text; `#a` is `T` and `#n` is `N`.
const UPDATES: [(&str, bool); 22] = [
    ("SET T = :t", true),
    ("SET #a = :t, N = :n REMOVE L", true),
    ("set T = :t remove N", true),
    ("REMOVE N, L", true),
    ("SET T=:t", true),
    ("DELETE S :s", true),
    ("SET M.X = :t", true),
    ("ADD N :n", false),
    ("add N :n", false),
    ("SET T = :t ADD #n :n", false),
    ("ADD S :s", false),
    ("SET N = N + :n", false),
    ("SET N = N - :n", false),
    ("SET N = :n+N", false),
    ("SET L = list_append(L, :l)", false),
    ("SET N = if_not_exists(N, :n)", false),
    ("SET T = N, N = :n", false),
    ("SET T = #n, #n = :n", false),
    ("SET L[9] = :t", false),
    ("REMOVE L[0]", false),
    ("SET T = :t REMOVE L[1]", false),
    ("SET M.X = T, T = :t", false),
];

fn values(update: &str) -> Item {
    let one = |name: &str, value| (name.to_owned(), value);
    let all = [
        one(":t", text("new")),
        one(":n", AttributeValue::N("2".to_owned())),
        one(":s", AttributeValue::Ss(vec!["a".to_owned(), "z".to_owned()])),
        one(":l", AttributeValue::L(vec![text("more")])),
    ];
    all.into_iter().filter(|(name, _)| update.contains(name.as_str())).collect()
}

fn write(update: &str) -> Write {
    let names = [("#a", "T"), ("#n", "N")].into_iter();
    let names = names.filter(|(name, _)| update.contains(name));
    let mut expression = Expression::new(update);
    expression.values = values(update);
    let expression = names.fold(expression, |e, (name, of)| e.name(name, of));
    Write::update("Orders", key("1"), expression)
}

async fn update(client: &Client, write: &Write) {
    let Action::Update(key, update) = &write.action else { panic!("{write:?}") };
    let Expression { names, values, .. } = &write.condition;
    let some = |names: &std::collections::HashMap<String, String>| {
        Some(names.clone()).filter(|names| !names.is_empty())
    };
    let sent = client
        .update_item()
        .table_name("Orders")
        .set_key(Some(key.clone()))
        .update_expression(update)
        .set_expression_attribute_names(some(names))
        .set_expression_attribute_values(Some(values.clone()).filter(|all| !all.is_empty()));
    sent.send().await.unwrap();
}

async fn item(client: &Client) -> Item {
    let read = client.get_item().table_name("Orders").set_key(Some(key("1")));
    read.consistent_read(true).send().await.unwrap().item.unwrap()
}

/// None that counts as repeatable makes a difference when it is done twice; and of the others most do, or the rule would be too strict.
#[tokio::test]
async fn what_may_be_repeated_makes_no_difference() {
    let (_engine, client) = engine();
    create(&client, "Orders", true).await;
    let mut base = key("1");
    base.insert("T".to_owned(), text("old"));
    base.insert("N".to_owned(), AttributeValue::N("1".to_owned()));
    base.insert("L".to_owned(), AttributeValue::L(vec![text("a"), text("b"), text("c")]));
    base.insert("S".to_owned(), AttributeValue::Ss(vec!["a".to_owned(), "b".to_owned()]));
    base.insert("M".to_owned(), AttributeValue::M([("X".to_owned(), text("x"))].into()));
    let mut differ = 0;
    for (expression, repeatable) in UPDATES {
        let put = client.put_item().table_name("Orders").set_item(Some(base.clone()));
        put.send().await.unwrap();
        let write = write(expression);
        assert_eq!(write.repeatable(), repeatable, "{expression}");
        update(&client, &write).await;
        let once = item(&client).await;
        if expression.starts_with("REMOVE L[") && once["L"].as_l().unwrap().is_empty() {
            continue;
        }
        update(&client, &write).await;
        let same = once == item(&client).await;
        assert!(same || !repeatable, "{expression}");
        differ += usize::from(!same);
    }
    assert!(differ >= 12, "{differ}");
    assert!(Write::put("Orders", key("1")).repeatable());
    assert!(Write::delete("Orders", key("1")).repeatable());
}
