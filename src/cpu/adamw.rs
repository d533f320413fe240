use super::Cpu;
use crate::ops::adamw::*;
pub fn update(_cpu: &Cpu, _hyper: &Hyper, _arguments: Update<'_>) {
    todo!()
}
