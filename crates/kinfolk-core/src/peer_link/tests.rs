//! Tests of the machine, in the order of its tables.
