--[[
remove_child_dependency: a job is nobody's child any more; its parent does not wait for it.
Uses: _queue _parents
KEYS: "prefix:queue:"
ARGV: 1 id   2 full key of its parent
Returns: 0; 1 where the parent does not wait for it; -1 no such job, -5 no such parent
Events: waiting, of a parent that waited for nothing else
]]
local key, parent_key = KEYS[1] .. ARGV[1], ARGV[2]
if call('EXISTS', key) == 0 then
  return -1
elseif call('EXISTS', parent_key) == 0 then
  return -5
elseif call('SISMEMBER', parent_key .. ':dependencies', key) == 0 then
  return 1
end
detach_from_parent(key, parent_key)
call('HDEL', key, 'parentKey', 'parent')
return 0
