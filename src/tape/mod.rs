//! Reverse-mode autograd over the operations of `ops`.
