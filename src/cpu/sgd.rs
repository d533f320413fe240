use super::Cpu;
use crate::ops::sgd::*;
pub fn update(_cpu: &Cpu, _hyper: &Hyper, _arguments: Update<'_>) {
    todo!()
}
