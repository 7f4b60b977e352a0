//! The whole program, and the store on real databases.

mod store;
mod support;
