# sqlite3 in memory: inserts, an index, joins, grouping, text
# packages: sqlite3
# quick: yes
prepare() { sqlite3 -version; }
work()
{
    sqlite3 :memory: <<SQL
create table item (id integer primary key, owner integer, name text, price real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < $((scale * 60000)))
insert into item select i, i * 7919 % 1000, 'item ' || i * 31 % 10007, i * 17 % 1009 / 7.0 from n;
create index item_owner on item (owner);
create table owner (id integer primary key, name text);
insert into owner select distinct owner, 'owner ' || owner from item;
select count(*), round(sum(price), 3) from item join owner on owner.id = item.owner where owner.name like '%7%';
select owner, count(*) c, round(avg(price), 3) from item group by owner order by c desc, owner limit 5;
update item set name = upper(name) where owner % 3 = 0;
select count(distinct name), max(length(name)) from item;
SQL
}
