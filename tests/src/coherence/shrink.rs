//! A failing list of steps made short, so that a person can read it (delta debugging).

/// The shortest list that still fails, as far as `attempts` tries find it. `fails` says whether a list does; the one
/// given must. A failure that depends on time may not come again: then it stays in the list.
pub fn shrink<T: Clone>(
    steps: &[T],
    mut attempts: u32,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut kept = steps.to_vec();
    let mut piece = kept.len().div_ceil(2);
    while piece > 0 && attempts > 0 {
        let (mut at, mut found) = (0, false);
        while at < kept.len() && attempts > 0 {
            let end = (at + piece).min(kept.len());
            let without = [&kept[..at], &kept[end..]].concat();
            attempts -= 1;
            if fails(&without) {
                kept = without;
                found = true;
            } else {
                at = end;
            }
        }
        // Single steps again until none can go.
        if !(found && piece == 1) {
            piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_that_matter_are_left_in_their_order() {
        let steps: Vec<u32> = (0..1000).collect();
        let fails = |list: &[u32]| {
            let at = |wanted| list.iter().position(|step| *step == wanted);
            at(17).is_some() && at(400) < at(900) && at(400).is_some()
        };
        assert_eq!(shrink(&steps, 10_000, fails), [17, 400, 900]);
    }

    #[test]
    fn no_more_attempts_are_made_than_are_allowed() {
        let mut count = 0;
        let steps: Vec<u32> = (0..1000).collect();
        let kept = shrink(&steps, 7, |_| {
            count += 1;
            false
        });
        assert_eq!((kept.len(), count), (1000, 7));
    }

    #[test]
    fn what_fails_without_any_step_shrinks_to_nothing() {
        assert!(shrink(&[1, 2, 3], 100, |_| true).is_empty());
    }
}
