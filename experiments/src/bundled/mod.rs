//! The small model that this project trained itself.
