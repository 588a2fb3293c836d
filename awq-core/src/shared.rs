//! [`Shared`]: what the cells of a sweep compute once for a block, whoever asks first.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Results by what was asked. A question is a value of a type of its asker's own, so that askers need not know each other.
#[derive(Debug, Default)]
pub struct Shared {
    by_type: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

/// Questions of one type with their answers. There are few: the grids and methods of a sweep.
type Answers<K, V> = Mutex<Vec<(K, Arc<V>)>>;

impl Shared {
    /// The answer to `question`, made by `make` where nobody has asked before. A second asker waits for the first. `make` may
    /// ask questions of other types, none of its own.
    ///
    /// # Errors
    /// What `make` gives; the next asker tries again.
    pub fn get<K, V, E>(&self, question: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E>
    where
        K: PartialEq + Send + 'static,
        V: Send + Sync + 'static,
    {
        let answers = self.answers::<K, V>();
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, answer)) = answers.iter().find(|(asked, _)| *asked == question) {
            return Ok(answer.clone());
        }
        let answer = Arc::new(make()?);
        answers.push((question, answer.clone()));
        Ok(answer)
    }

    /// Forgets all answers; who has one keeps it.
    pub fn clear(&self) {
        self.by_type.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn answers<K: Send + 'static, V: Send + Sync + 'static>(&self) -> Arc<Answers<K, V>> {
        let mut by_type = self.by_type.lock().unwrap_or_else(PoisonError::into_inner);
        let of_type = TypeId::of::<Answers<K, V>>();
        let answers = by_type.entry(of_type).or_insert_with(|| Arc::new(Answers::<K, V>::default()));
        answers.clone().downcast().unwrap_or_else(|_| unreachable!("a value is filed under its own type"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(PartialEq)]
    struct Square(u32);

    #[derive(PartialEq)]
    struct Text(u32);

    fn square(shared: &Shared, n: u32, made: &AtomicUsize) -> Result<Arc<u32>, String> {
        shared.get(Square(n), || {
            made.fetch_add(1, Ordering::Relaxed);
            n.checked_mul(n).ok_or_else(|| "too large".to_owned())
        })
    }

    #[test]
    fn each_question_is_answered_once_and_types_are_kept_apart() {
        let (shared, made) = (Shared::default(), AtomicUsize::new(0));
        assert_eq!([3, 4, 3, 3].map(|n| *square(&shared, n, &made).unwrap()), [9, 16, 9, 9]);
        assert_eq!(made.load(Ordering::Relaxed), 2);
        let text = || -> Result<String, ()> { Ok(square(&shared, 5, &made).unwrap().to_string()) };
        assert_eq!(*shared.get(Text(3), text).unwrap(), "25");
        assert_eq!(*shared.get(Text(3), || Err::<String, ()>(())).unwrap(), "25");
    }

    #[test]
    fn what_was_forgotten_is_made_again() {
        let (shared, made) = (Shared::default(), AtomicUsize::new(0));
        let first = square(&shared, 3, &made).unwrap();
        shared.clear();
        assert_eq!([*first, *square(&shared, 3, &made).unwrap()], [9, 9]);
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_failure_is_asked_again() {
        let (shared, made) = (Shared::default(), AtomicUsize::new(0));
        assert_eq!([(); 2].map(|()| square(&shared, u32::MAX, &made).unwrap_err()), ["too large"; 2]);
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn askers_at_once_share_one_answer() {
        let (shared, made) = (Shared::default(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(*square(&shared, 7, &made).unwrap(), 49));
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }
}
