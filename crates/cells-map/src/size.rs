//! The sizes that things grow through.

/// The smallest of 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, … that is at least `n`.
///
/// Growing by a fifth on average instead of doubling keeps the worst moment, just after growth, close to the best. General-purpose
/// allocators have these very classes (four to a power of two), so nothing is lost to their rounding.
pub(crate) fn step(n: usize) -> usize {
    let n = n.max(4);
    // 4 · 2^shift <= n < 8 · 2^shift
    let shift = n.ilog2() - 2;
    n.div_ceil(1 << shift) << shift
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn four_steps_to_a_power_of_two() {
        let steps: Vec<usize> =
            std::iter::successors(Some(step(0)), |n| Some(step(n + 1))).take(14).collect();
        assert_eq!(steps, [4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40]);
    }
}
