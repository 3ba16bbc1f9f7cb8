//! A lookup allocates nothing, whether it finds its key or not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cells_map::{CompactMap, Packed};

struct Counting;

thread_local! {
    /// Per thread: the harness has threads of its own.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Byte(u8);

impl Packed for Byte {
    const BYTES: usize = 1;

    fn pack(&self, to: &mut [u8]) {
        to[0] = self.0;
    }

    fn unpack(from: &[u8]) -> Self {
        Self(from[0])
    }
}

fn allocations(of: impl FnOnce()) -> usize {
    let before = COUNT.with(Cell::get);
    of();
    COUNT.with(Cell::get) - before
}

#[test]
fn a_lookup_allocates_nothing() {
    let map = CompactMap::with_shards(4);
    // All the ways a hash of its length can take: short, middle, long.
    let keys: Vec<String> =
        [2, 4, 19, 128, 200, 1024, 40_000].map(|bytes| "k".repeat(bytes)).into();
    assert!(
        allocations(|| keys.iter().for_each(|key| assert_eq!(map.insert(key, Byte(7)), None))) > 0,
        "the count counts"
    );
    let lookups = || {
        for key in &keys {
            assert_eq!(map.get(key), Some(Byte(7)));
            assert_eq!(map.get(&key[..key.len() / 3]), None);
        }
    };
    assert_eq!(allocations(lookups), 0);
    // Nor does a change of a value that is there.
    assert_eq!(allocations(|| assert_eq!(map.insert(&keys[2], Byte(8)), Some(Byte(7)))), 0);
}
