"""What devices send each other, as read from the texts of compiled programs."""

import pytest

from sdjax.pipeline.collectives import Collective, Total, collectives, totals

PROGRAM = """HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.1 = (f32[4,2]{1,0}, bf16[3]{0}) all-reduce(%x, %y), replica_groups={{0,1}}, to_apply=%sum
}

ENTRY %main (a: f32[2]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %a = f32[2,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], chain_id="0"
  %again = f32[2,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], chain_id="0"
  %b = (bf16[1,4]{1,0}, bf16[4,4]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %c = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %d = (f32[4]{0}, pred[2]{0}) all-reduce(%x, %y), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum
  %e = f32[3]{0} collective-permute-done(%c)
  ROOT %f = f32[2]{0} add(%e, %e), metadata={op_name="all-gather(x)"}
}
"""


def test_exchanges_are_read_with_their_loops_groups_and_sizes():
    found = collectives(PROGRAM, 8)
    assert found == [
        Collective("all-reduce", 2, 38, 5), Collective("all-gather", 4, 64), Collective("all-gather", 4, 32),
        Collective("collective-permute", 8, 12), Collective("all-reduce", 4, 18),
    ]  # fmt: skip
    # A gathered array has 3 of 4 parts from others; a sum of two goes around once, one of four twice three quarters
    assert [one.received for one in found] == [5 * 38, 48, 24, 12, 27]
    assert totals(found)["all-reduce"] == Total(6, 5 * 38 + 18, 5 * 38 + 27)


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("", 8)
