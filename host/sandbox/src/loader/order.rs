//! What a loader tells its compiler: one argument on a command line, written and read here.

use std::fmt;
use std::str::FromStr;

use wasmtime::Engine;

use super::confine::Confinement;
use super::{CompileLimits, EngineKind};
use crate::artefact::compatibility;

/// Which engine to compile for, and what the compilation may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub(super) kind: EngineKind,
    /// The settings of the engine that will load the artefact. The child compares: an artefact for others would be
    /// found out later, and not by name.
    pub(super) compatible: String,
    pub(super) processor_s_max: u64,
    pub(super) memory_bytes_max: u64,
    pub(super) confinement: Confinement,
}

/// An order that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an order of a loader")]
pub struct OrderError;

impl Order {
    pub(super) fn new(
        kind: EngineKind,
        engine: &Engine,
        limits: &CompileLimits,
        confinement: Confinement,
    ) -> Self {
        Self {
            kind,
            compatible: compatibility(engine),
            // Rounded up: a limit of 0 would be no limit.
            processor_s_max: limits.processor_max.as_millis().div_ceil(1_000).max(1) as u64,
            memory_bytes_max: limits.memory_bytes_max,
            confinement,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, compatible, processor_s_max, memory_bytes_max, confinement } = self;
        let (kind, confinement) = (kind.name(), confinement.name());
        write!(f, "{kind}:{compatible}:{processor_s_max}:{memory_bytes_max}:{confinement}")
    }
}

impl FromStr for Order {
    type Err = OrderError;

    fn from_str(text: &str) -> Result<Self, OrderError> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(OrderError);
        let name = next()?;
        let order = Self {
            kind: EngineKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or(OrderError)?,
            compatible: next()?.to_owned(),
            processor_s_max: next()?.parse().map_err(|_| OrderError)?,
            memory_bytes_max: next()?.parse().map_err(|_| OrderError)?,
            confinement: {
                let name = next()?;
                Confinement::ALL.into_iter().find(|known| known.name() == name).ok_or(OrderError)?
            },
        };
        if parts.next().is_some() { Err(OrderError) } else { Ok(order) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        for kind in EngineKind::ALL {
            let engine = Engine::new(&kind.compile_config()).unwrap();
            for confinement in Confinement::ALL {
                let order = Order::new(kind, &engine, &CompileLimits::default(), confinement);
                assert_eq!(order.to_string().parse(), Ok(order.clone()));
                assert_eq!(format!("{order}:1").parse::<Order>(), Err(OrderError));
            }
        }
        assert_eq!("hooks:x:1".parse::<Order>(), Err(OrderError));
        assert_eq!("hocks:x:1:1:required".parse::<Order>(), Err(OrderError));
        assert_eq!("hooks:x:1:1:none".parse::<Order>(), Err(OrderError));
    }
}
