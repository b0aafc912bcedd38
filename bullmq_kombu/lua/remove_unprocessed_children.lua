--[[
remove_unprocessed_children: removes the children of a job that have not ended and that no worker has in hand.
Uses: _queue _parents _state _remove
KEYS: "prefix:queue:"
ARGV: 1 id of the parent
Returns: how many children were removed
Events: removed for each; waiting, when the parent waited for nothing else
]]
local removed = 0
for _, child in ipairs(call('SMEMBERS', KEYS[1] .. ARGV[1] .. ':dependencies')) do
  local base, id = base_of(child)
  if not is_in_hand(child, true) and not call('ZSCORE', base .. 'failed', id) then
    remove_with_children(base, id, KEYS[1] .. ARGV[1])
    removed = removed + 1
  end
end
return removed
