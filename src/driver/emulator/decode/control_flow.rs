//! The order of a function's blocks.
//!
//! Divergent lanes meet again if the machine always runs the group that is furthest behind, and "behind" must then mean
//! that every path to the meeting point passes through smaller places. So blocks are laid out such that every edge goes
//! forward, except the back edges of loops, and a loop's blocks are contiguous: its exits come after all of it. With that
//! order the meeting point of a branch, its immediate post-dominator, comes after both sides, whatever order the compiler
//! wrote them in. It is made by sorting strongly connected components topologically and then, inside each, cutting the
//! edges into its header and sorting again.

/// Nesting beyond which the written order is kept: no compiler makes such loops, and the work stays bounded.
const MAX_NESTING: usize = 100;

/// The order in which to lay out blocks with these successors; block 0 is the entry and comes first.
pub fn order(successors: &[Vec<u32>]) -> Vec<u32> {
    let mut result = Vec::with_capacity(successors.len());
    let mut is_cut = vec![false; successors.len()];
    enum Task {
        Region(Vec<u32>, usize),
        Place(u32),
    }
    // Blocks that nothing reaches go last: they only have to exist.
    let mut tasks = vec![Task::Region((0..successors.len() as u32).collect(), 0)];
    let mut region_of = vec![0u32; successors.len()];
    let mut next_region = 1u32;
    while let Some(task) = tasks.pop() {
        let (nodes, depth) = match task {
            Task::Place(node) => {
                result.push(node);
                continue;
            }
            Task::Region(nodes, depth) => (nodes, depth),
        };
        if depth > MAX_NESTING {
            result.extend(nodes);
            continue;
        }
        let region = next_region;
        next_region += 1;
        for &node in &nodes {
            region_of[node as usize] = region;
        }
        // Components come out in reverse topological order, which is the order a stack wants them in.
        for mut component in components(successors, &nodes, &region_of, region, &is_cut) {
            if let [only] = component[..] {
                tasks.push(Task::Place(only));
                continue;
            }
            component.sort_unstable();
            // The header: where the component is entered; the first written one, if it has several entries.
            let inside: std::collections::HashSet<u32> = component.iter().copied().collect();
            let outside = nodes.iter().filter(|node| !inside.contains(node));
            let entered =
                outside.flat_map(|&node| &successors[node as usize]).filter(|block| inside.contains(block)).min();
            let header = entered.copied().unwrap_or(component[0]);
            // First, so that the sort starts from it.
            component.retain(|&block| block != header);
            component.insert(0, header);
            is_cut[header as usize] = true;
            tasks.push(Task::Region(component, depth + 1));
        }
    }
    result
}

/// Strongly connected components (Tarjan, without recursion) of the region, ignoring edges into cut blocks.
fn components(
    successors: &[Vec<u32>],
    nodes: &[u32],
    region_of: &[u32],
    region: u32,
    is_cut: &[bool],
) -> Vec<Vec<u32>> {
    use std::collections::HashMap;
    #[derive(Clone, Copy)]
    struct State {
        index: u32,
        low: u32,
        on_stack: bool,
    }
    let mut states: HashMap<u32, State> = HashMap::with_capacity(nodes.len());
    let mut stack = Vec::new();
    let mut found = Vec::new();
    let mut unreached = Vec::new();
    for (position, &root) in nodes.iter().enumerate() {
        if states.contains_key(&root) {
            continue;
        }
        let first_component = found.len();
        let index = states.len() as u32;
        states.insert(root, State { index, low: index, on_stack: true });
        stack.push(root);
        let mut path = vec![(root, 0usize)];
        while let Some(&mut (node, ref mut edge)) = path.last_mut() {
            let targets = &successors[node as usize];
            if *edge < targets.len() {
                let target = targets[*edge];
                *edge += 1;
                if region_of[target as usize] != region || is_cut[target as usize] {
                    continue;
                }
                if let Some(&seen) = states.get(&target) {
                    if seen.on_stack
                        && let Some(state) = states.get_mut(&node)
                    {
                        state.low = state.low.min(seen.index);
                    }
                } else {
                    let index = states.len() as u32;
                    states.insert(target, State { index, low: index, on_stack: true });
                    stack.push(target);
                    path.push((target, 0));
                }
                continue;
            }
            path.pop();
            let state = states[&node];
            if let Some(&(parent, _)) = path.last()
                && let Some(above) = states.get_mut(&parent)
            {
                above.low = above.low.min(state.low);
            }
            if state.low == state.index {
                let mut component = Vec::new();
                while let Some(member) = stack.pop() {
                    if let Some(state) = states.get_mut(&member) {
                        state.on_stack = false;
                    }
                    component.push(member);
                    if member == node {
                        break;
                    }
                }
                found.push(component);
            }
        }
        // The first root reaches everything that matters; later roots are unreachable code, which goes behind.
        if position > 0 {
            unreached.push(found.split_off(first_component));
        }
    }
    let mut all: Vec<Vec<u32>> = unreached.into_iter().rev().flatten().collect();
    all.append(&mut found);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_of_a_loop_come_after_all_of_it_and_back_edges_alone_go_back() {
        // 0 -> 1; 1 -> 4 (exit, written late) | 2; 2 -> 3 | 4; 3 -> 1; 4 -> end. Written order 0 1 4' ... shuffled.
        let successors = vec![vec![2], vec![], vec![1, 3], vec![4, 1], vec![2]];
        let order = order(&successors);
        let place = |block: u32| order.iter().position(|&b| b == block).unwrap();
        assert_eq!(order.len(), 5);
        assert_eq!(place(0), 0);
        assert_eq!(place(1), 4, "{order:?}");
    }

    #[test]
    fn a_join_comes_after_both_sides_even_when_written_between_them() {
        let successors = vec![vec![1, 3], vec![2], vec![], vec![2]];
        let order = order(&successors);
        assert_eq!((order[0], order[3]), (0, 2));
    }

    #[test]
    fn nested_and_irreducible_loops_keep_every_block_once() {
        let successors = vec![vec![1, 2], vec![2, 3], vec![1, 3], vec![4, 0], vec![4, 5], vec![3, 6], vec![]];
        let mut order = order(&successors);
        assert_eq!(order[6], 6);
        order.sort_unstable();
        assert_eq!(order, vec![0, 1, 2, 3, 4, 5, 6]);
    }
}
