//! How a home stands to its standby. What the standby answers is [`crate::pair::standby`]'s.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::problem::Problem;
use super::{Answer, Shared};
use crate::pair::held::{Held, NOT_NOTED};
use crate::pair::rumour::Rumours;
use crate::pair::standby::PairStatus;
use crate::store::{Store, StoreError};

/// What a home knows of its pair.
pub(crate) struct HomeStatus {
    pub(crate) held: Arc<Held>,
    pub(crate) rumours: Arc<Rumours>,
    pub(crate) term: u64,
    /// False: there is no other region.
    pub(crate) is_paired: bool,
}

impl HomeStatus {
    /// Rows sent since start.
    pub(super) fn rows(&self) -> u64 {
        self.held.known().rows
    }

    pub(super) async fn of(&self, region: &str, store: &Store) -> Result<PairStatus, StoreError> {
        let known = self.held.known();
        let (mut lag_rows, mut lag_ms, mut trouble) = (None, None, None);
        if self.is_paired {
            let head = store.change_head().await?;
            lag_rows = Some(head.saturating_sub(known.seq));
            lag_ms = Some(u64::try_from(self.held.behind_for().as_millis()).unwrap_or(u64::MAX));
            trouble = match (head, known.is_connected) {
                (0, _) => Some(NOT_NOTED.to_owned()),
                (_, false) => {
                    Some(self.held.trouble().unwrap_or("no standby follows this process").to_owned())
                }
                (_, true) => self.held.trouble().map(str::to_owned),
            };
        }
        let trouble = match (trouble, self.rumours.trouble()) {
            (Some(trouble), Some(rumour)) => Some(format!("{trouble}. {rumour}")),
            (trouble, rumour) => trouble.or(rumour),
        };
        Ok(PairStatus {
            region: region.to_owned(),
            role: "home",
            term: self.term,
            ack_level: self.is_paired.then(|| self.held.level().number()),
            connected: known.is_connected,
            trouble,
            lag_rows,
            lag_ms,
            as_of_ms: None,
            files_missing: None,
            later_home_named: Some(self.rumours.count()),
        })
    }
}

pub(super) async fn get(State(control): State<Shared>) -> Answer<PairStatus> {
    Ok(Json(control.pair.of(&control.region, &control.store).await?))
}

pub(super) async fn take_over(State(control): State<Shared>) -> Problem {
    Problem::home_already(control.pair.term)
}
