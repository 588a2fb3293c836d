//! Baselines that AWQ is compared with. They know grids, calibration statistics and linears, no data set and no experiment.

pub mod rtn;
