--[[
read_jobs: the jobs of one state.
KEYS: "prefix:queue:"
ARGV: 1 state, as its key is called   2, 3 first and last place, -1 for the end   4 1 for the oldest first, else the newest
Returns: id, hash (flat), and so on; ids without a hash are left out
]]
local base, state, oldest_first = KEYS[1], ARGV[1], ARGV[4] == '1'
local from, to = tonumber(ARGV[2]), tonumber(ARGV[3])

-- Lists have the newest at their head.
local function range_of(list)
  local ids = redis.call('LRANGE', base .. list, 0, -1)
  if not oldest_first then
    return ids
  end
  local turned = {}
  for i = #ids, 1, -1 do
    turned[#turned + 1] = ids[i]
  end
  return turned
end

local function slice(ids)
  local first = from < 0 and math.max(#ids + from, 0) or from
  local last = to < 0 and #ids + to or math.min(to, #ids - 1)
  local part = {}
  for place = first, last do
    part[#part + 1] = ids[place + 1]
  end
  return part
end

local ids
if state == 'active' then
  ids = slice(range_of('active'))
elseif state == 'wait' then
  ids = range_of('wait')
  local parked = range_of('paused')
  -- What BullMQ 5 has parked is older than what came after.
  local older, newer = parked, ids
  local all = {}
  for _, list in ipairs(oldest_first and { older, newer } or { newer, older }) do
    for _, id in ipairs(list) do
      all[#all + 1] = id
    end
  end
  ids = slice(all)
else
  ids = redis.call(oldest_first and 'ZRANGE' or 'ZREVRANGE', base .. state, from, to)
end

local found = {}
for _, id in ipairs(ids) do
  local hash = redis.call('HGETALL', base .. id)
  if #hash > 0 then
    found[#found + 1] = id
    found[#found + 1] = hash
  end
end
return found
