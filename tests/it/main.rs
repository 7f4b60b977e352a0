//! The whole program, and the store on real databases.

mod process_layer;
mod store;
mod support;
