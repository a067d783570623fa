//! What openraft runs on: tokio. A simulation may seed its chance, so that a schedule plays the same again.

#[cfg(not(feature = "mutations"))]
pub use openraft::impls::TokioRuntime as Runtime;
#[cfg(feature = "mutations")]
pub use seeded::{SeededRuntime as Runtime, seed};

#[cfg(feature = "mutations")]
mod seeded {
    use std::cell::Cell;
    use std::future::Future;
    use std::time::Duration;

    use openraft::impls::TokioRuntime;
    use openraft::{AsyncRuntime, OptionalSend};
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    thread_local! {
        static CHANCE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Lets everything that openraft draws on this thread from now on follow from `seed`.
    pub fn seed(seed: u64) {
        CHANCE.set(Some(seed));
    }

    /// tokio, with chance from [`seed`] where the thread has one.
    #[derive(Debug)]
    pub struct SeededRuntime(TokioRuntime);

    impl AsyncRuntime for SeededRuntime {
        type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
        type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
        type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
        type Instant = <TokioRuntime as AsyncRuntime>::Instant;
        type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
        type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
        type ThreadLocalRng = SmallRng;
        type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
        type Watch = <TokioRuntime as AsyncRuntime>::Watch;
        type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
        type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

        fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
        where
            T: Future + OptionalSend + 'static,
            T::Output: OptionalSend + 'static,
        {
            TokioRuntime::spawn(future)
        }

        fn sleep(duration: Duration) -> Self::Sleep {
            TokioRuntime::sleep(duration)
        }

        fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
            TokioRuntime::sleep_until(deadline)
        }

        fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
            TokioRuntime::timeout(duration, future)
        }

        fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
            deadline: Self::Instant,
            future: F,
        ) -> Self::Timeout<R, F> {
            TokioRuntime::timeout_at(deadline, future)
        }

        fn is_panic(join_error: &Self::JoinError) -> bool {
            TokioRuntime::is_panic(join_error)
        }

        fn thread_rng() -> SmallRng {
            match CHANCE.get() {
                None => SmallRng::seed_from_u64(rand::random()),
                Some(seed) => {
                    let mut chance = SmallRng::seed_from_u64(seed);
                    CHANCE.set(Some(chance.random()));
                    chance
                }
            }
        }

        fn new(threads: usize) -> Self {
            Self(TokioRuntime::new(threads))
        }

        fn block_on<F, T>(&mut self, future: F) -> T
        where
            F: Future<Output = T>,
        {
            self.0.block_on(future)
        }
    }
}
