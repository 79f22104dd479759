//! What became of the messages that went over one channel. Pure, but for the answers that it hands out.
//!
//! A server numbers what it is sent on a channel from one on, and says by number what it has taken (`basic.ack`, one or all up
//! to it) or could not keep (`basic.nack`). A message that no queue takes it gives back first (`basic.return`, which has no
//! number) and *then says that it has taken it*: between the two may be what it says of others. So a message that came back
//! is remembered by its id until its own number is told, and is not held then.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::oneshot;

use crate::events::NotHeld;

/// Of one message.
pub(super) type Answer = oneshot::Receiver<Result<(), NotHeld>>;

/// Why a channel came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// The server's, if it was the server who closed it: 404, 406.
    pub(super) code: Option<u16>,
    pub(super) text: String,
}

struct Sent {
    id: String,
    answer: oneshot::Sender<Result<(), NotHeld>>,
}

#[derive(Default)]
pub(super) struct Confirms {
    /// Of the message that was sent last.
    number: u64,
    unanswered: BTreeMap<u64, Sent>,
    /// By id, with what the server said.
    returned: HashMap<String, String>,
    end: Option<End>,
}

impl Confirms {
    /// The next message on this channel is the one with this id. It has to be sent before any other is.
    pub(super) fn sends(&mut self, id: String) -> Answer {
        let (answer, told) = oneshot::channel();
        self.number += 1;
        match &self.end {
            None => drop(self.unanswered.insert(self.number, Sent { id, answer })),
            // Whoever has stopped waiting needs no answer, here and below.
            Some(end) => drop(answer.send(Err(NotHeld::Away(end.text.clone())))),
        }
        told
    }

    pub(super) fn acked(&mut self, number: u64, and_all_before: bool) {
        for sent in self.take(number, and_all_before) {
            let outcome = match self.returned.remove(&sent.id) {
                None => Ok(()),
                Some(why) => Err(NotHeld::Unroutable(why)),
            };
            let _gone = sent.answer.send(outcome);
        }
    }

    pub(super) fn nacked(&mut self, number: u64, and_all_before: bool) {
        for sent in self.take(number, and_all_before) {
            self.returned.remove(&sent.id);
            let why = "it does not keep the message: a queue is full, or has lost its leader".to_owned();
            let _gone = sent.answer.send(Err(NotHeld::Refused(why)));
        }
    }

    /// Given back, because no queue takes it. Without an id it could be any of those that are not answered: none of them counts
    /// as held then.
    pub(super) fn returned(&mut self, id: Option<&str>, why: &str) {
        match id {
            Some(id) if self.unanswered.values().any(|sent| sent.id == id) => {
                self.returned.insert(id.to_owned(), why.to_owned());
            }
            _ => self.end(End { code: None, text: format!("a message came back that is not ours: {why}") }),
        }
    }

    /// Nothing more is heard of what is not answered. The first reason is the one that counts.
    pub(super) fn end(&mut self, end: End) {
        let end = self.end.get_or_insert(end);
        for (_, sent) in std::mem::take(&mut self.unanswered) {
            let _gone = sent.answer.send(Err(NotHeld::Away(end.text.clone())));
        }
        self.returned.clear();
    }

    pub(super) const fn ended(&self) -> Option<&End> {
        self.end.as_ref()
    }

    fn take(&mut self, number: u64, and_all_before: bool) -> Vec<Sent> {
        if !and_all_before {
            return self.unanswered.remove(&number).into_iter().collect();
        }
        // Zero is "all" to the protocol.
        let later =
            if number == 0 { BTreeMap::new() } else { self.unanswered.split_off(&number.saturating_add(1)) };
        std::mem::replace(&mut self.unanswered, later).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirms(ids: &[&str]) -> (Confirms, Vec<Answer>) {
        let mut confirms = Confirms::default();
        let answers = ids.iter().map(|id| confirms.sends((*id).to_owned())).collect();
        (confirms, answers)
    }

    fn said(answers: &mut [Answer]) -> Vec<&'static str> {
        let one = |answer: &mut Answer| match answer.try_recv() {
            Ok(Ok(())) => "held",
            Ok(Err(error)) => error.name(),
            Err(oneshot::error::TryRecvError::Empty) => "-",
            Err(oneshot::error::TryRecvError::Closed) => panic!("nobody will ever answer"),
        };
        answers.iter_mut().map(one).collect()
    }

    #[test]
    fn a_number_answers_one_message_or_all_up_to_it() {
        let (mut confirms, mut answers) = confirms(&["a", "b", "c", "d", "e"]);
        confirms.acked(3, false);
        assert_eq!(said(&mut answers[..3]), ["-", "-", "held"]);
        confirms.acked(2, true);
        assert_eq!(said(&mut answers[..2]), ["held", "held"]);
        confirms.nacked(0, true);
        assert_eq!(said(&mut answers[3..]), ["refused", "refused"]);
        confirms.acked(9, true);
        confirms.acked(1, false);
        let mut late = [confirms.sends("f".to_owned())];
        assert_eq!(said(&mut late), ["-"], "what was said of numbers to come does not count for them");
        confirms.acked(6, false);
        let mut again = [confirms.sends("g".to_owned())];
        assert_eq!((said(&mut late), said(&mut again)), (vec!["held"], vec!["-"]));
    }

    /// The server says of an unroutable message that it has taken it, and something of others in between.
    #[test]
    fn a_message_that_came_back_is_not_held_whatever_is_said_between_the_two() {
        let (mut confirms, mut answers) = confirms(&["a", "b", "c", "d"]);
        confirms.returned(Some("c"), "NO_ROUTE");
        confirms.acked(1, false);
        confirms.acked(4, true);
        assert_eq!(said(&mut answers), ["held", "held", "unroutable", "held"]);
        let mut again = [confirms.sends("c".to_owned())];
        confirms.acked(5, false);
        assert_eq!(said(&mut again), ["held"], "the same event, when there is a queue");
    }

    #[test]
    fn a_message_that_comes_back_unknown_leaves_none_for_held() {
        for id in [None, Some("z")] {
            let (mut confirms, mut answers) = confirms(&["a", "b"]);
            confirms.returned(id, "NO_ROUTE");
            confirms.acked(2, true);
            assert_eq!(said(&mut answers), ["away", "away"], "{id:?}");
        }
    }

    #[test]
    fn the_end_of_a_channel_answers_whoever_waits_and_whoever_comes() {
        let (mut confirms, mut answers) = confirms(&["a", "b"]);
        assert_eq!(confirms.ended(), None);
        confirms.end(End { code: Some(320), text: "CONNECTION_FORCED".to_owned() });
        confirms.end(End { code: None, text: "the connection is lost".to_owned() });
        answers.push(confirms.sends("c".to_owned()));
        confirms.acked(3, true);
        assert_eq!(said(&mut answers), ["away", "away", "away"]);
        assert_eq!(confirms.ended().and_then(|end| end.code), Some(320), "what came first says why");
    }
}
