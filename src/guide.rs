//! Guide pages: how to use the crate for a broker, a tool, and in production.

#[doc = include_str!("../docs/guide/broker.md")]
pub mod broker {}

#[doc = include_str!("../docs/guide/tool.md")]
pub mod tool {}

#[doc = include_str!("../docs/guide/settings.md")]
pub mod settings {}

#[doc = include_str!("../docs/guide/operations.md")]
pub mod operations {}

#[doc = include_str!("../docs/guide/alternatives.md")]
pub mod alternatives {}
