//! Every callback of every actor and every task that an actor owns panics, fails or never returns, one at a time: what follows is one
//! event, the siblings live on, every ask has its outcome, the node is usable or has ended with the cause, and nothing is left over.

mod cycles;
mod discovery;
mod flows;
mod never;
mod provoke;
mod scene;
mod streams;
mod table;
