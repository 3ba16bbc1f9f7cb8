//! An answer from memory allocates nothing. In a binary of its own, for its allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use cells_client::Mode;
use cells_client::fake::FakeDirectory;

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[tokio::test(start_paused = true)]
async fn hits_allocate_nothing_in_either_mode() {
    for mode in [Mode::Whole, Mode::Bounded { capacity: 1_000 }] {
        let fake = FakeDirectory::new();
        fake.put_cell("a", "https://a.example", "eu-west-1");
        let keys: Vec<String> = (0..500).map(|n| format!("customer-{n}")).collect();
        keys.iter().for_each(|key| fake.place(key, "a"));
        let directory = fake.builder().mode(mode).connect().await.unwrap();
        for key in &keys {
            directory.locate(key).await.unwrap();
        }
        // What a thread allocates at its first lookup belongs to the thread.
        black_box(directory.resolve(&keys[0]));
        let before = COUNT.with(Cell::get);
        let mut seen = 0;
        for key in &keys {
            let answer = directory.resolve(key).unwrap();
            seen += answer.endpoint().len() + answer.region().len() + answer.epoch() as usize;
            black_box((
                answer.lease(),
                answer.age(),
                answer.is_stale(),
                answer.may_write_directly(),
            ));
            black_box(directory.resolve("nobody"));
        }
        assert_eq!(COUNT.with(Cell::get) - before, 0, "{mode:?}");
        assert!(seen > 0);
    }
}
