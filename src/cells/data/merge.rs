//! One partition as several cells hold it: in the order of sort keys, each key once, from the newest cell that has it.

use std::cmp::Ordering;
use std::collections::VecDeque;

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;

use super::compare::sort_keys;
use super::{DataError, Item};

/// The items of one cell's partition, in the order of their sort keys.
#[async_trait]
pub trait Source: Send {
    /// The next items. None and `true`: there is no more; none and `false`: ask again.
    async fn page(&mut self) -> Result<(Vec<Item>, bool), DataError>;
}

struct Lane<S> {
    source: S,
    buffer: VecDeque<Item>,
    ended: bool,
}

/// Sources in the order of their precedence.
pub struct Merge<S> {
    sort_key: Option<String>,
    lanes: Vec<Lane<S>>,
}

impl<S: Source> Merge<S> {
    /// `sort_key`: the attribute; `None` for a table without one.
    pub fn new(sort_key: Option<String>, sources: impl Iterator<Item = S>) -> Self {
        let lane = |source| Lane { source, buffer: VecDeque::new(), ended: false };
        Self { sort_key, lanes: sources.map(lane).collect() }
    }

    /// The next item and the number of its source. An error is that of the source whose number comes with it; it is asked no more.
    pub async fn next(&mut self) -> Option<Result<(usize, Item), (usize, DataError)>> {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            while lane.buffer.is_empty() && !lane.ended {
                match lane.source.page().await {
                    Ok((items, ended)) => {
                        lane.buffer.extend(items);
                        lane.ended = ended;
                    }
                    Err(error) => {
                        lane.ended = true;
                        return Some(Err((number, error)));
                    }
                }
            }
        }
        let least = self.least()?;
        let first = self.lanes[least].buffer.pop_front()?;
        let same: Vec<_> = self
            .lanes
            .iter()
            .map(|lane| {
                let head = lane.buffer.front();
                head.is_some_and(|head| self.order(head, &first) == Ordering::Equal)
            })
            .collect();
        for (lane, _) in self.lanes.iter_mut().zip(same).filter(|(_, same)| *same) {
            lane.buffer.pop_front();
        }
        Some(Ok((least, first)))
    }

    /// Of the lanes with the least sort key the first.
    fn least(&self) -> Option<usize> {
        let heads = self.lanes.iter().enumerate();
        let heads = heads.filter_map(|(number, lane)| Some((number, lane.buffer.front()?)));
        // Of equals, `min_by` answers the first.
        heads.min_by(|(_, a), (_, b)| self.order(a, b)).map(|(number, _)| number)
    }

    fn order(&self, a: &Item, b: &Item) -> Ordering {
        let Some(name) = &self.sort_key else { return Ordering::Equal };
        let key = |item: &Item| item.get(name).cloned().unwrap_or(AttributeValue::Null(true));
        sort_keys(&key(a), &key(b))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::FutureExt;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    /// Pages of these sizes, some of them empty.
    struct Pages(VecDeque<Vec<Item>>);

    #[async_trait]
    impl Source for Pages {
        async fn page(&mut self) -> Result<(Vec<Item>, bool), DataError> {
            match self.0.pop_front() {
                Some(page) => Ok((page, false)),
                None => Ok((Vec::new(), true)),
            }
        }
    }

    fn item(key: u32, cell: usize) -> Item {
        let text = |text: String| AttributeValue::S(text);
        [("SK".to_owned(), text(format!("{key:04}"))), ("cell".to_owned(), text(cell.to_string()))]
            .into()
    }

    proptest! {
        /// The same as to lay all cells over each other, the newest on top.
        #[test]
        fn the_newest_cell_wins_and_nothing_is_lost(
            cells in vec((btree_set(0_u32..40, 0..30), 1_usize..5), 0..4),
        ) {
            let mut expected = BTreeMap::new();
            for (number, (keys, _)) in cells.iter().enumerate().rev() {
                expected.extend(keys.iter().map(|key| (format!("{key:04}"), item(*key, number))));
            }
            let sources = cells.iter().enumerate().map(|(number, (keys, size))| {
                let items: Vec<_> = keys.iter().map(|key| item(*key, number)).collect();
                let mut pages: VecDeque<_> = items.chunks(*size).map(<[Item]>::to_vec).collect();
                pages.push_front(Vec::new());
                Pages(pages)
            });
            let mut merge = Merge::new(Some("SK".to_owned()), sources);
            let mut found = Vec::new();
            while let Some(next) = merge.next().now_or_never().unwrap() {
                found.push(next.unwrap().1);
            }
            prop_assert_eq!(found, expected.into_values().collect::<Vec<_>>());
        }
    }
}
