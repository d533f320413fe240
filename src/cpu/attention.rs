use super::Cpu;
use crate::ops::attention::*;
pub fn forward(_cpu: &Cpu, _shape: &Shape, _arguments: Forward<'_>) {
    todo!()
}
pub fn backward(_cpu: &Cpu, _shape: &Shape, _arguments: Backward<'_>) {
    todo!()
}
