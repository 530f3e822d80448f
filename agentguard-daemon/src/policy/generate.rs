//! Random policies and actions for comparing judges.
