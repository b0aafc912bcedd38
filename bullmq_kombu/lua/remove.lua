--[[
remove: removes a job, with its children if wanted, from whatever state it is in.
Uses: _queue _parents _state _remove
KEYS: "prefix:queue:"
ARGV: 1 id   2 1 to remove its children too, ended or not
Returns: 1, also where there is no such job; 0 where it or a child is in a worker's hands; -8 a scheduler will do it next
Events: removed for each; of a parent that waited for nothing else: waiting
]]
local base, id, deep = KEYS[1], ARGV[1], ARGV[2] == '1'
if scheduled_next(base)[id] and call('EXISTS', base .. id) == 1 then
  return -8
elseif is_in_hand(base .. id, deep) then
  return 0
end
local parent_key = call('HGET', base .. id, 'parentKey')
if deep then
  remove_with_children(base, id, parent_key)
else
  remove_one(base, id, parent_key)
end
return 1
