//! Whose turn it is when there are more threads than cores: those that answer calls come first.

use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, thread_native_id};

/// Of 0 to 99, where 50 is the usual; on Linux a niceness of 10: about a tenth of the share of a thread that answers.
#[cfg(unix)]
const BACKGROUND: u8 = 22;

/// Lets the calling thread stand back behind those that answer calls, for good: for compiling, looking after candidates
/// and following the plugin directory, and for whatever else can wait a moment and has a thread of its own. Where the
/// system has no such thing nothing happens.
pub fn stand_back() {
    #[cfg(unix)]
    {
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
        let done = ThreadPriority::try_from(BACKGROUND).map_err(|error| format!("{error:?}")).and_then(|priority| {
            thread_priority::set_thread_priority_and_policy(thread_native_id(), priority, policy)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = done {
            tracing::debug!(error, "a background thread keeps its usual priority");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod tests {
    /// The niceness of the calling thread: field 19 of its `stat`, the 17th after the name.
    pub(crate) fn niceness() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_that_stands_back_is_nicer_than_its_maker_and_its_maker_is_not() {
        let before = niceness();
        let after = std::thread::spawn(|| {
            super::stand_back();
            niceness()
        });
        assert_eq!(after.join().unwrap(), 10);
        assert_eq!(niceness(), before);
    }
}
