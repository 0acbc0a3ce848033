//! Whose turn it is when there are more threads than cores: what looks after the data stands back as what looks after the
//! components does.

pub use tenon_runtime::stand_back;
