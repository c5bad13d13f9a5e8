//! Guide pages: how to use the crate for a broker, a tool, and in production.

#[doc = include_str!("../docs/guide/broker.md")]
pub mod broker {}

#[doc = include_str!("../docs/guide/tool.md")]
pub mod tool {}

#[doc = include_str!("../docs/guide/settings.md")]
pub mod settings {}

#[doc = include_str!("../docs/guide/operations.md")]
#[doc = "\n## Metrics and log of a broker\n"]
#[doc = "At `/metrics` of `examples/broker`, while clients wait (of each histogram, the first and the last bucket):\n"]
#[doc = include_str!("../docs/pictures/metrics.svg")]
#[doc = "\nIts log, with the feature `tracing`:\n"]
#[doc = include_str!("../docs/pictures/log.svg")]
pub mod operations {}

#[doc = include_str!("../docs/guide/alternatives.md")]
pub mod alternatives {}
