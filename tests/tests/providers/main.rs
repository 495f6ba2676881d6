//! Protocols that nodes offer in their records, and calls to whoever does: near, idle and alive ones are asked, dead ones cost little, and nothing
//! runs twice that must not.

mod beside;
mod choosing;
mod failing;
mod offers;
mod scene;
