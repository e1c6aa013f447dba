-- Merges rows into entities' entries, newer wins: the same rules as `merge` in src/model/packed, where the bytes are
-- drawn. Orders are compared as four numbers of six bytes, because a Lua number holds 53 bits and Lua's comparison of
-- strings follows the server's locale.
--
-- KEYS            the entries' keys, which a cluster keeps in one slot
-- ARGV[1], [2]    now, as in a row; how many future rows an entry keeps
-- ARGV[3]         1 when entries expire, 0 when they live for ever
-- ARGV[4] …       for each key the entry to merge in and, when entries expire, the milliseconds that its newest row
--                 has to live
-- Returns how many values were replaced because they were no entries.

local unpack_order = struct.unpack
local now, now_low = unpack_order('>I6I2', ARGV[1])
-- Of an order's first twelve bytes, six and six, those of a row that is due are below (now, due_below).
local due_below = (now_low + 1) * 4294967296
local future_max = tonumber(ARGV[2])
local expires = ARGV[3] == '1'
local step = expires and 2 or 1

local function due(a, b)
  return a < now or (a == now and b < due_below)
end

-- An entry's rows: { a, b, c, d, the row }, where a to d are its order; nil for bytes that are no entry.
local function parse(entry)
  local size = #entry
  local tag = string.byte(entry, 1)
  if tag == 2 then
    if size < 25 then return nil end
    local a, b, c, d = unpack_order('>I6I6I6I6', entry, 2)
    return {{a, b, c, d, string.sub(entry, 2)}}
  end
  if tag ~= 3 or size == 1 then return nil end
  local rows, at = {}, 2
  while at <= size do
    if at + 27 > size then return nil end
    local length = unpack_order('>I4', entry, at)
    if length < 24 or at + 3 + length > size then return nil end
    local a, b, c, d = unpack_order('>I6I6I6I6', entry, at + 4)
    rows[#rows + 1] = {a, b, c, d, string.sub(entry, at + 4, at + 3 + length)}
    at = at + 4 + length
  end
  return rows
end

-- below 0 when row x is older than y, 0 when they are the same row, above 0 when x is newer
local function compare(x, y)
  for i = 1, 4 do
    if x[i] ~= y[i] then return x[i] - y[i] end
  end
  return 0
end

-- The entry of both, each newest first; of two rows of the same order the incoming one comes first and stays.
local function merge(new, old)
  local kept, i, j, future, last = {}, 1, 1, 0, nil
  while i <= #new or j <= #old do
    local row
    if j > #old or (i <= #new and compare(new[i], old[j]) >= 0) then
      row, i = new[i], i + 1
    else
      row, j = old[j], j + 1
    end
    local same_time = last and row[1] == last[1]
      and math.floor(row[2] / 4294967296) == math.floor(last[2] / 4294967296)
    if not same_time then
      kept[#kept + 1] = row[5]
      last = row
      if due(row[1], row[2]) then break end
      future = future + 1
    end
  end
  local first = math.max(1, future - future_max + 1)
  if first == #kept then return '\2' .. kept[first] end
  local parts = {'\3'}
  for k = first, #kept do
    parts[#parts + 1] = struct.pack('>I4', #kept[k])
    parts[#parts + 1] = kept[k]
  end
  return table.concat(parts)
end

-- The key's new entry, or nil when what is there stays; and whether the newest row is an incoming one, by which the
-- entry's life counts: a group's TTL may have changed since the same row came the first time.
local function outcome(existing, incoming)
  if existing == incoming then return nil, true end
  if string.byte(existing, 1) == 2 and string.byte(incoming, 1) == 2 and #existing >= 25 then
    local a, b, c, d = unpack_order('>I6I6I6I6', incoming, 2)
    local e, f, g, h = unpack_order('>I6I6I6I6', existing, 2)
    if due(a, b) and due(e, f) then
      local newer
      if a ~= e then newer = a > e elseif b ~= f then newer = b > f
      elseif c ~= g then newer = c > g else newer = d >= h end
      if newer then return incoming, true end
      return nil
    end
  end
  local old, new = parse(existing), parse(incoming)
  if not old then return incoming, true, true end
  local merged = merge(new, old)
  local newest = compare(new[1], old[1]) >= 0
  if merged == existing then return nil, newest end
  return merged, newest
end

-- Values of another type come back as absent, and are overwritten like them.
local stored = redis.call('MGET', unpack(KEYS))
local replaced, for_ever = 0, {}
for i = 1, #KEYS do
  local key, at = KEYS[i], 4 + (i - 1) * step
  local entry, newest, unreadable = ARGV[at], true, false
  if stored[i] then entry, newest, unreadable = outcome(stored[i], entry) end
  if unreadable then replaced = replaced + 1 end
  if entry and not expires then
    for_ever[#for_ever + 1] = key
    for_ever[#for_ever + 1] = entry
  elseif entry and newest then
    redis.call('SET', key, entry, 'PX', ARGV[at + 1])
  elseif entry then
    redis.call('SET', key, entry, 'KEEPTTL')
  elseif newest and expires then
    redis.call('PEXPIRE', key, ARGV[at + 1])
  elseif newest then
    redis.call('PERSIST', key)
  end
end
if #for_ever > 0 then redis.call('MSET', unpack(for_ever)) end
return replaced
