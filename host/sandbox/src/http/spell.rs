//! Guests that run one after the other on their caller's task, and when that task must let others run.
//!
//! A client that pipelines has its next request read as soon as one is answered, and hyper goes on with sixteen of them
//! before it lets go of the thread: sixteen whole guests, if each ends before it waits. So a task that has run guests
//! for a while gives way before it begins the next one. What it has answered is sent by then: nobody's answer waits for
//! this. A task whose guests are short gives way once for many of them, and one that takes turns with others never has
//! to: their polls are between its own.
//!
//! Called by [`super::service`] around each run. What this module refuses to know: what runs.

use std::cell::Cell;
use std::time::Duration;

use tokio::task;

/// How long a task may go on with guest after guest: the length of a tick, below which a guest counts as short. The
/// last of them may take its slice beyond this.
const SPELL_MAX: Duration = Duration::from_millis(1);

/// What a thread knows of the task that last ran guests on it.
#[derive(Clone, Copy)]
struct Spell {
    task: Option<task::Id>,
    ran: Duration,
}

thread_local! {
    static SPELL: Cell<Spell> = const { Cell::new(Spell { task: None, ran: Duration::ZERO }) };
}

/// Lets everybody else run, and the runtime look for what has come from outside, if this task has had the thread to
/// itself for long enough. Cancel safe.
pub(super) async fn give_way() {
    if is_over() {
        task::yield_now().await;
    }
}

/// The task has run a guest on this thread, or a part of one.
pub(super) fn ran(time: Duration) {
    let task = task::try_id();
    let last = SPELL.get();
    let before = if last.task == task { last.ran } else { Duration::ZERO };
    SPELL.set(Spell { task, ran: before.saturating_add(time) });
}

/// Whether the task's spell on this thread is over; then the next one begins.
fn is_over() -> bool {
    let Spell { task, ran } = SPELL.get();
    let is_over = ran >= SPELL_MAX && task == task::try_id();
    if is_over {
        SPELL.set(Spell { task, ran: Duration::ZERO });
    }
    is_over
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_gives_way_once_its_guests_have_run_for_a_spell_and_nobody_elses_between() {
        let third = SPELL_MAX / 3 + Duration::from_nanos(1);
        let mut ways = Vec::new();
        for _ in 0..7 {
            ways.push(is_over());
            ran(third);
        }
        assert_eq!(ways, [false, false, false, true, false, false, true], "three short guests at a time");

        ran(SPELL_MAX);
        let other = tokio::spawn(async {
            let before = is_over();
            ran(SPELL_MAX);
            before
        });
        assert!(!other.await.expect("a task"), "another's spell");
        assert!(!is_over(), "somebody else has run between");
    }
}
