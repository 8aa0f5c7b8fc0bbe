//! New values in the memory of a tensor, whoever else holds it.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::launch;

/// The same as a launch. Unlike [`launch::own`] it makes no copy of `place`, which has to lie in one piece: all who hold it see
/// the new values from then on, by intention.
pub(crate) fn in_place(place: CubeTensor, values: CubeTensor) -> CubeTensor {
    let client = place.client.clone();
    let (count, dim) = launch::units(&client, place.meta.num_elements());
    let element = launch::element(&place);
    let values = launch::whole(values).into_buffer_arg();
    in_place_kernel::launch(&client, count, dim, values, place.clone().into_buffer_arg(), element);
    place
}

#[cube(launch)]
fn in_place_kernel<E: Numeric>(values: &[E], place: &mut [E], #[define(E)] _dtype: ElemType) {
    let at = ABSOLUTE_POS;
    if at >= place.len() {
        terminate!();
    }
    place[at] = values[at];
}
